"""What `import coldstream` offers: names, parameters, errors, types."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import click
import pytest

import coldstream
from coldstream import errors
from coldstream.cli import cli
from coldstream.loading.options import Options

# Flags of `coldstream load` that turn something off, and what only a command has.
OFF = {"no_cache": "cache", "no_verify": "verify"}
COMMAND_ONLY = {"uri", "metrics_port", "metrics_host", "metrics_file"}


def parameters(function: object) -> set[str]:
    return {*inspect.signature(function).parameters}  # type: ignore[arg-type]


def test_every_public_name_can_be_imported() -> None:
    for name in coldstream.__all__:
        assert getattr(coldstream, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = coldstream.nothing  # type: ignore[attr-defined]


def test_every_error_is_exported() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert kinds <= {*coldstream.__all__}


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(coldstream.__file__).parent / "py.typed").is_file()


def flags(verb: str) -> set[str]:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return {OFF.get(parameter.name or "", parameter.name or "") for parameter in command.params}


def test_parameters_have_the_names_of_the_flags() -> None:
    names = flags("load") - flags("list") - COMMAND_ONLY
    assert {"connections", "memory", "cache"} <= names
    assert names <= parameters(coldstream.stream)


def test_every_option_is_a_parameter_of_every_function_that_it_concerns() -> None:
    options = {*Options.__slots__}
    assert parameters(coldstream.stream) == options - {"attach_seconds"} | {"uri", "subfolder"}
    assert parameters(coldstream.load) == parameters(coldstream.stream)
    into = options - {"attach_seconds", "framework", "keep_all"}
    assert parameters(coldstream.load_into) == into | {"module", "uri", "subfolder", "strict", "prefix"}
    assert parameters(coldstream.share) == options - {"framework", "pin", "names"} | {"uri", "consumers"}
    assert parameters(coldstream.attach) == {"address", "device", "framework", "pin"}


def test_defaults_are_those_of_the_options() -> None:
    for function in (coldstream.stream, coldstream.load, coldstream.load_into, coldstream.share, coldstream.attach):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in Options.__slots__ and (function, name) != (coldstream.load, "keep_all"):
                assert parameter.default == getattr(Options(), name), (function, name)


def test_old_names_work_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="concurrency is deprecated; use connections") as caught:
        options = Options(concurrency=3)  # type: ignore[call-arg]
    assert options.connections == 3
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="memory_limit is deprecated; use memory"):
        loading = coldstream.stream("x", memory_limit=1 << 30)  # type: ignore[call-arg]
    assert loading._options.memory == 1 << 30
    with (
        pytest.warns(DeprecationWarning, match="concurrency"),
        pytest.raises(coldstream.UsageError, match="connections"),
    ):
        coldstream.stream("x", concurrency=0)  # type: ignore[call-arg]


def test_parameters_without_an_effect_are_ignored_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="verify has no effect here"), pytest.raises(coldstream.NotFoundError):
        coldstream.attach("/no/such/socket", verify=False)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="concurrency has no effect"), pytest.raises(coldstream.NotFoundError):
        coldstream.attach("/no/such/socket", concurrency=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="urI"):
        coldstream.stream("x", urI=1)  # type: ignore[call-arg]


SCRIPT = """
import coldstream

try:
    with coldstream.stream("org/model", connections=8, memory=1 << 30, cache=False) as loading:
        for name, tensor in loading:
            print(name, tensor.shape)
    assert loading.report is not None
    print(loading.report.limited_by, coldstream.prepare("org/model"))
except coldstream.UnavailableError as error:
    print(error.retryable, error.hint)
"""


def test_a_user_s_script_passes_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    # torch's own types take a minute to check, and are not what is checked here.
    arguments = ["--strict", "--cache-dir", str(tmp_path / "cache"), "--python-version", "3.10"]
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n[mypy-botocore.*]\n")
    for content, expected in ((SCRIPT, "Success"), (SCRIPT.replace("connections=8", "connection=8"), '"connection"')):
        script.write_text(content)
        command = [sys.executable, "-m", "mypy", *arguments, str(script)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert expected in result.stdout, result.stdout + result.stderr
