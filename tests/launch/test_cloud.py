"""What SkyPilot finds in the cloud, before it takes minutes to find out that it is not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.launch import cloud


def test_the_role_of_the_machines_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(cloud, "ENDPOINT", f"http://127.0.0.1:{port}")
    process = cloud.start_api(tmp_path / "moto.log")
    try:
        client = cloud.connect("us-east-1", "iam")
        profile = client.get_instance_profile(InstanceProfileName=cloud.ROLE)["InstanceProfile"]
        client.close()
    finally:
        process.terminate()
        process.wait()
    assert [role["RoleName"] for role in profile["Roles"]] == [cloud.ROLE]
