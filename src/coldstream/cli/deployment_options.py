"""What `template` and `launch` share: the options that say what is to run where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from coldstream.fleet.deployment import Wish

F = TypeVar("F", bound=Callable[..., Any])


def deployment_options(function: F) -> F:
    """Adds them: gpus, spot, cloud, loader, image, no_image, port, max_model_len, fallback."""
    for option in reversed(
        (
            click.option(
                "--gpus", metavar="GPU[:N]", required=True, help="In each machine, such as L4 or A100-80GB:4."
            ),
            click.option(
                "--spot/--on-demand",
                "spot",
                default=None,
                help="Machines that may be taken back, or not.  [default: spot]",
            ),
            click.option("--cloud", help="Where, as SkyPilot writes it: aws, or gcp/us-central1.  [default: wherever]"),
            click.option(
                "--loader",
                type=click.Choice(["coldstream", "runai"]),
                default="coldstream",
                show_default=True,
                help="How vLLM gets the weights.",
            ),
            click.option(
                "--image", help="A container image with vLLM.  [default: vllm/vllm-openai of a tested version]"
            ),
            click.option("--no-image", is_flag=True, help="Install vLLM on the machine instead."),
            click.option(
                "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Where it answers."
            ),
            click.option(
                "--max-model-len", type=click.IntRange(1), help="Tokens that a conversation must be able to have."
            ),
            click.option(
                "--fallback",
                type=click.Choice(["hf"]),
                help="Where to stream from when the bucket fails at the start.",
            ),
        )
    ):
        function = option(function)
    return function


def chosen_image(image: str | None, *, no_image: bool) -> str | None:
    """The container image that is meant; None: vLLM is installed on the machine.

    Raises:
        UsageError: Both are asked for.
    """
    from coldstream.errors import UsageError
    from coldstream.fleet.deployment import IMAGE

    if image and no_image:
        raise UsageError("--image and --no-image contradict each other", hint="keep one of them")
    return None if no_image else image or IMAGE


def template_words(model: str, wish: Wish, gpus: str, *, max_model_len: int | None) -> list[str]:
    """The `coldstream template` that writes the file of a wish, but for `-o`.

    Args:
        model: `org/model` in the bucket.
        wish: What `launch` was asked for.
        gpus: In each machine.
        max_model_len: As it was given.
    """
    from coldstream.fleet.deployment import Wish

    words = ["coldstream", "template", model, "--target", wish.target, "--gpus", gpus]
    if wish.spot is not None:
        words.append("--spot" if wish.spot else "--on-demand")
    if wish.image is None:
        words.append("--no-image")
    given, usual = _values(wish, max_model_len), _values(Wish(target=wish.target), None)
    return words + [word for name, text in given.items() if text not in {None, usual[name]} for word in (name, text)]


def _values(wish: Wish, max_model_len: int | None) -> dict[str, str | None]:
    replicas = wish.replicas
    return {
        "--cloud": wish.cloud,
        "--replicas": f"{replicas.fewest}..{replicas.most}" if replicas.scales else str(replicas.fewest),
        "--loader": wish.loader,
        "--image": wish.image,
        "--port": str(wish.port),
        "--max-model-len": str(max_model_len) if max_model_len else None,
        "--fallback": wish.fallback,
        "--command": wish.command,
    }
