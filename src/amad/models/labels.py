"""Which label a position of a model predicts."""

from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from amad.models.blip_pretraining import BlipForPretraining
from amad.models.blip_seq2seq import is_seq2seq


def has_encoder(model: PreTrainedModel) -> bool:
    """Whether the model is an encoder-decoder, or has its form: labels are shifted for it before they are read."""
    has_its_form = is_seq2seq(model) or isinstance(model, BlipForPretraining)
    return has_its_form or bool(getattr(model.config, "is_encoder_decoder", False))


def predicts_next(model: PreTrainedModel) -> bool:
    """Whether position t predicts label t + 1, as in a decoder alone and in upstream's BLIP; otherwise label t."""
    return not has_encoder(model) and (
        LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss
        or type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    )
