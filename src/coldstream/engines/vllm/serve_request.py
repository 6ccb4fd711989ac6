"""What the user asks `serve` for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coldstream.loading.options import Options
from coldstream.model.names import is_path, model_name
from coldstream.model.uri import Uri


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What is to be served, and how.

    Attributes:
        uri: See `Load`.
        arguments: For `vllm serve`.
        loader: One of `LOADERS`.
        options: Of the loads, for the loader coldstream.
        fallback: "hf" to stream from the Hub when the bucket fails at the start, or None.
        program: The `vllm` to run; None: the one beside this Python, or on the PATH.
        bundle: What is done about warm-start bundles, one of `coldstream.node.bundle.MODES`.
        environment: More variables for vLLM.
        pass_env: Credentials that vLLM is given, of which it gets none otherwise, by the names of their variables.
        spot_notice: Whether the cloud is asked for its notice that it takes a spot machine back.
        first_token: Whether one token is asked for once it answers, to know when the first one came.
    """

    uri: Uri
    arguments: tuple[str, ...]
    loader: str
    options: Options
    fallback: str | None = None
    program: str | None = None
    bundle: str = "auto"
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    first_token: bool = True
    spot_notice: bool = True

    @property
    def is_name(self) -> bool:
        """Whether the model is one of the configured bucket."""
        return "://" not in self.uri.full and not is_path(self.uri.full)

    @property
    def served_name(self) -> str:
        """What the model is called in vLLM's API: `org/model`, or the folder's name."""
        return model_name(self.uri)
