"""The JSON bodies of the protocol. A field that is none of theirs is refused, or that nothing here acts on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

LARGEST = 2**63 - 1
"""The largest number that the database holds."""


def _held(value: int) -> int:
    if abs(value) > LARGEST:
        raise ValueError("a whole number has 64 bits at most")
    return value


Whole = Annotated[int, AfterValidator(_held)]
"""A number that can be kept. Bounds of a field stand beside it: those of an annotation would go before them."""


class Body(BaseModel):
    """A body with exactly its fields, each of the kind that it is sent as: no text, true or 2.0 is a whole number."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


def _only(value: Any, allowed: tuple[Any, ...], why: str) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is refused: {why}")
    return value


class ClientBody(Body):
    sdk_version: str = Field(max_length=100)


class SessionBody(Body):
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = Field("", max_length=100)
    project_id: None = None
    """There are no projects here."""
    display_name: str | None = Field(None, max_length=200)
    type: Literal["create_session"] = "create_session"


class HeartbeatBody(Body):
    session_id: str
    type: Literal["session_heartbeat"] = "session_heartbeat"


class FinishBody(Body):
    reason: dict[str, Any]
    detail: str | None = None


class LoraBody(Body):
    rank: Whole
    seed: Whole | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerBody(Body):
    type: str = "adamw"

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        return _only(value, ("adamw",), "adapters are trained with adamw here")


class ModelBody(Body):
    session_id: str
    model_seq_id: Whole = Field(ge=0)
    base_model: str = Field(max_length=2000)
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraBody
    optimizer_config: OptimizerBody = OptimizerBody()
    type: Literal["create_model"] = "create_model"


class LoadBody(Body):
    model_id: str | None = None
    seq_id: Whole | None = Field(None, ge=1)
    session_id: str | None = None
    model_seq_id: Whole | None = Field(None, ge=0)
    base_model: str | None = Field(None, max_length=2000)
    user_metadata: dict[str, Any] | None = None
    path: str
    optimizer: bool
    optimizer_config: OptimizerBody | None = None
    weights_access_token: None = None
    """Checkpoints of others are not read here."""
    type: Literal["load_weights"] = "load_weights"


class NamedBody(Body):
    model_id: str
    type: str | None = None


class NumberedBody(BaseModel):
    """What says which request of which model a body is, whatever else it holds."""

    model_config = ConfigDict(strict=True, protected_namespaces=())
    model_id: str
    seq_id: Whole = Field(ge=1)


class AdamBody(Body):
    learning_rate: float = Field(1e-4, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-12, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip_norm: float = Field(0.0, ge=0)


class StepBody(Body):
    model_id: str
    seq_id: Whole = Field(ge=1)
    adam_params: AdamBody
    type: Literal["optim_step"] = "optim_step"


HOUR, TEN_YEARS = 3600, 10 * 366 * 86400


class SaveBody(Body):
    model_id: str
    seq_id: Whole = Field(ge=1)
    path: str | None = None
    ttl_seconds: Whole | None = Field(None, ge=HOUR, le=TEN_YEARS)
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None
    type: Literal["save_weights"] = "save_weights"


class SaveSamplerBody(Body):
    model_id: str
    seq_id: Whole = Field(ge=1)
    path: str | None = None
    sampling_session_seq_id: Whole | None = Field(None, ge=0)
    kind: str = "snapshot"
    ttl_seconds: Whole | None = Field(None, ge=HOUR, le=TEN_YEARS)
    user_metadata: dict[str, str] | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"

    @field_validator("kind")
    @classmethod
    def _fixed(cls, value: str) -> str:
        return _only(value, ("snapshot",), "a sampler here keeps the weights that it was saved with")


class SamplingSessionBody(Body):
    session_id: str
    sampling_session_seq_id: Whole = Field(ge=0)
    base_model: str | None = None
    model_path: str | None = None
    type: Literal["create_sampling_session"] = "create_sampling_session"


class JoinBody(Body):
    sampling_session_id: str
    type: Literal["join_sampling_session"] = "join_sampling_session"


Stop = Annotated[str, Field(min_length=1)]


class SamplingBody(Body):
    max_tokens: Whole | None = Field(None, ge=1, le=2**31)
    seed: Whole | None = None
    stop: Stop | list[Stop] | list[Whole] | None = None
    temperature: float = Field(1.0, ge=0)
    top_k: Whole = -1
    top_p: float = Field(1.0, gt=0, le=1)

    @field_validator("top_k")
    @classmethod
    def _some(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError(f"top_k is {value}; expected 1 or more, or -1 for no limit")
        return value


class SampleBody(Body):
    num_samples: Whole = Field(1, ge=1, le=128)
    prompt: dict[str, Any]
    sampling_params: SamplingBody
    base_model: None = None
    model_path: None = None
    """A sampling session says what answers."""
    sampling_session_id: str
    seq_id: Whole = Field(ge=0)
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Whole = Field(0, ge=0, le=1000)
    topk_sample_logprobs: Whole = Field(0, ge=0, le=20)
    target_prompt_logprobs: dict[str, Any] | None = None
    prompt_alt_tokens_k: Whole = 0
    prompt_logprobs_last_n: Whole | None = Field(None, ge=1)
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"

    @field_validator("prompt_alt_tokens_k")
    @classmethod
    def _no_draws(cls, value: int) -> int:
        return _only(value, (0,), "no tokens are drawn beside a prompt here")

    @field_validator("record_stability_info")
    @classmethod
    def _no_record(cls, value: bool | None) -> bool | None:
        return _only(value, (None, False), "the sampler's stability is not recorded here")


class FutureBody(Body):
    request_id: str
    allow_metadata_only: bool = False
    """The whole result may always be answered, and is."""
    model_id: str | None = None


class TargetBody(Body):
    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: Whole = 0


class FuturesBody(Body):
    target: TargetBody
    prev_cursor: Whole = Field(0, lt=LARGEST)
    timeout: float | None = Field(None, ge=0)
    retrieved_request_ids: list[str] = []


class CancelBody(Body):
    request_id: str


class PathBody(Body):
    tinker_path: str


class TimeToLiveBody(Body):
    ttl_seconds: Whole | None = Field(None, ge=HOUR, le=TEN_YEARS)
