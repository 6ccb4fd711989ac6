"""The cloud: moto's server is its API, and what the API says is running, runs.

A machine that is terminated is gone at once, with all of its processes and its address.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError

from tests.launch.catalogue import ZONES
from tests.launch.namespace import run, unshared
from tests.launch.node import Spec

ENDPOINT = "http://127.0.0.1:5001"
ENVIRON = {
    "AWS_ENDPOINT_URL": ENDPOINT,
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
# An account that SkyPilot has used before has its role: SkyPilot waits for half a minute after it has created one.
ROLE = "skypilot-v1"
_STEP_SECONDS = 1.0


@dataclass(frozen=True)
class Instance:
    """A machine, as the API tells it."""

    id: str
    kind: str
    region: str
    spot: bool
    state: str
    address: str
    private: str


def connect(region: str, service: str = "ec2") -> Any:
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=ENDPOINT,
        aws_access_key_id=ENVIRON["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=ENVIRON["AWS_SECRET_ACCESS_KEY"],
    )


def start_api(log: Path) -> subprocess.Popen[bytes]:
    """Starts moto's server with the role of SkyPilot's machines, and in each region a network that has a way out."""
    argv = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", ENDPOINT.rpartition(":")[2]]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    until = time.monotonic() + 60
    while True:
        try:
            _create_role()
            for region in ZONES:
                _open_network(region)
        except BotoCoreError:  # noqa: PERF203  # it is about to listen
            if time.monotonic() > until or process.poll() is not None:
                raise
            time.sleep(0.2)
        else:
            return process


def _create_role() -> None:
    client = connect(next(iter(ZONES)), "iam")
    client.create_instance_profile(InstanceProfileName=ROLE)
    client.create_role(RoleName=ROLE, AssumeRolePolicyDocument="{}")
    client.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)
    client.close()


def _open_network(region: str) -> None:
    client = connect(region)
    network = client.describe_vpcs()["Vpcs"][0]["VpcId"]
    gateway = client.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    client.attach_internet_gateway(InternetGatewayId=gateway, VpcId=network)
    for table in client.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [network]}])["RouteTables"]:
        client.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    client.close()


def instances() -> list[Instance]:
    """All that there ever were."""
    found = []
    for region in ZONES:
        client = connect(region)
        for reservation in client.describe_instances()["Reservations"]:
            found += [_instance(region, told) for told in reservation["Instances"]]
        client.close()
    return found


def _instance(region: str, told: dict[str, Any]) -> Instance:
    return Instance(
        told["InstanceId"],
        told["InstanceType"],
        region,
        told.get("InstanceLifecycle") == "spot",
        told["State"]["Name"],
        told.get("PublicIpAddress", ""),
        told.get("PrivateIpAddress", ""),
    )


def running() -> list[Instance]:
    """Those that run now."""
    return [instance for instance in instances() if instance.state == "running"]


def preempt(gone: list[Instance]) -> None:
    """Takes machines back without a notice."""
    for instance in gone:
        client = connect(instance.region)
        client.terminate_instances(InstanceIds=[instance.id])
        client.close()


class Machines:
    """Makes the machines that the API says are running, and unmakes the others; a thread."""

    def __init__(self, folder: Path, *, home: Path, checkout: Path) -> None:
        """Prepares.

        Args:
            folder: For disks, on a file system of its own, and logs.
            home: What machines start with: see `image`.
            checkout: Of this repository.
        """
        self._folder, self._home, self._checkout = folder, home, checkout
        self._living: dict[str, subprocess.Popen[str]] = {}
        self._count = 0

    def start(self) -> None:
        """Begins; it ends with this process."""
        threading.Thread(target=self._attend, daemon=True).start()

    def _attend(self) -> None:
        while True:
            told = {instance.id: instance for instance in running()}
            for name in self._living.keys() - told.keys():
                process = self._living.pop(name)
                process.kill()
                process.wait()
                self._note("gone", name)
            for name in told.keys() - self._living.keys():
                self._living[name] = self._made(told[name])
                self._note("made", name)
            time.sleep(_STEP_SECONDS)

    def _made(self, instance: Instance) -> subprocess.Popen[str]:
        self._count += 1
        disk = self._folder / "disks" / instance.id
        disk.mkdir()
        spec = Spec(
            name=instance.id,
            disk=str(disk),
            home=str(self._home),
            checkout=str(self._checkout),
            addresses=(instance.address, instance.private),
            log=str(self._folder / "logs" / f"ssh-{instance.id}.log"),
        )
        with (self._folder / "logs" / f"node-{instance.id}.log").open("w") as log:
            process = subprocess.Popen(
                unshared(sys.executable, "-m", "tests.launch.node", spec.text()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        cable = f"v{self._count}"
        run("ip", "link", "add", cable, "type", "veth", "peer", "name", "e0", "netns", str(process.pid))
        run("ip", "link", "set", cable, "up")
        # Every address is local here: those of machines are not.
        for address in spec.addresses:
            run("ip", "route", "add", f"{address}/32", "dev", cable, "table", "local")
        process.stdin.write("begin\n")
        process.stdin.flush()
        return process

    def _note(self, what: str, name: str) -> None:
        with (self._folder / "logs/machines.jsonl").open("a") as log:
            log.write(json.dumps({"time": time.time(), "what": what, "instance": name}) + "\n")
