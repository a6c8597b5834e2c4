"""Which label a position of a model predicts."""

from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def has_encoder(model: PreTrainedModel) -> bool:
    """Whether the model is an encoder-decoder, whose labels are shifted for it before they are read."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def predicts_next(model: PreTrainedModel) -> bool:
    """Whether position t predicts label t + 1, as in a decoder alone and in BLIP; otherwise label t."""
    return not has_encoder(model) and (
        LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss
        or type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    )
