"""BLIP as it is pre-trained: contrast, matching and captioning of pairs of image and caption.

Li, Li, Xiong, Hoi 2022, BLIP: Bootstrapping Language-Image Pre-training (arXiv:2201.12086), section 3.2. Parts and
parameters have the names that transformers gives them in ``BlipForQuestionAnswering``,
``BlipForConditionalGeneration`` and ``BlipForImageTextRetrieval``, so each of these loads its own from the same folder
with plain ``from_pretrained``; :func:`fine_tuned` does it without a report of what is left over.

What differs from the authors' code (models/blip_pretrain.py) and is ours:

* The contrast is that of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.3): pairs of the same batch are the
  negatives, the temperature is learned. BLIP has a momentum encoder, a queue of 57,600 features and soft targets.
* Captions of the same image are all positive, so a batch may hold several of them.
* Text encoder and decoder share no weights, as in transformers; BLIP shares all but self-attention.
* Each process, and each accumulated batch, contrasts its own pairs.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import BlipConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.blip.modeling_blip import BlipPreTrainedModel, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

from amad.models.blip_seq2seq import as_seq2seq

LARGEST_SCALE = 100.0
"""What similarities are multiplied with at most, as in CLIP."""

LEAST_CHANCE = 1e-4
"""Added to the chance of each negative, as in BLIP, so that none is impossible."""


@dataclass
class BlipPretrainingOutput(ModelOutput):  # type: ignore[misc]
    """What a batch of pairs gives.

    Attributes:
        logits: Scores of the next token of each caption.
        sample_losses: ``contrast`` and ``match`` of each pair, in nats.
        sample_figures: Sum and number, to show the quotient: ``accuracy_contrast``, the share of captions and images
            whose most similar partner in the batch is theirs, and ``accuracy_match``, the mean of the shares of
            matched and of mismatched pairs that are told as such, so that guessing gives a half.
    """

    logits: Float[Tensor, "pair target vocab"] | None = None
    sample_losses: dict[str, Float[Tensor, " pair"]] | None = None
    sample_figures: dict[str, Float[Tensor, " 2"]] | None = None


class Contrast(NamedTuple):
    """Pairs of a batch against each other.

    Attributes:
        losses: Of each pair.
        similarities: Of each image with each caption, times the scale.
        same: Which are of one image.
    """

    losses: Float[Tensor, " pair"]
    similarities: Float[Tensor, "image caption"]
    same: Bool[Tensor, "image caption"]


class BlipForPretraining(BlipPreTrainedModel):  # type: ignore[misc]
    """BLIP with all that is pre-trained: vision part, text encoder and decoder, projections, matching head."""

    config: BlipConfig
    _tied_weights_keys = transformers.BlipForQuestionAnswering._tied_weights_keys

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, config.image_text_hidden_size)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.decoder_pad_token_id = config.text_config.pad_token_id
        self.decoder_start_token_id = config.text_config.bos_token_id
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Those of the text encoder."""
        return self.text_encoder.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace those of the text encoder."""
        self.text_encoder.set_input_embeddings(value)

    def prepare_decoder_input_ids_from_labels(
        self, labels: Int[Tensor, "pair target"]
    ) -> Int[Tensor, "pair target"]:
        """What the decoder reads to say these labels: ``[DEC]``, then all but the last."""
        start = labels.new_full((len(labels), 1), self.decoder_start_token_id)
        return torch.cat(
            [start, labels[:, :-1].masked_fill(labels[:, :-1] < 0, self.decoder_pad_token_id)], 1
        )

    def forward(
        self,
        input_ids: Int[Tensor, "pair token"],
        pair_input_ids: Int[Tensor, "pair token"],
        pixel_values: Float[Tensor, "pair 3 height width"],
        image_numbers: Int[Tensor, " pair"],
        attention_mask: Int[Tensor, "pair token"] | None = None,
        decoder_input_ids: Int[Tensor, "pair target"] | None = None,
        labels: Int[Tensor, "pair target"] | None = None,
        **kwargs: Any,
    ) -> BlipPretrainingOutput:
        """Losses of contrast and matching, and logits of captioning.

        While training, mismatches are drawn by how similar they seem: for each image a caption, for each caption an
        image. Otherwise they are the next ones in the batch, so that the figures of one model compare with another's.

        Args:
            input_ids: Captions that begin with ``[CLS]``, read without an image.
            pair_input_ids: The same beginning with ``[ENC]``, read with one.
            pixel_values: The image of each.
            image_numbers: Equal for captions of one image.
            attention_mask: 1 on real tokens.
            decoder_input_ids: What the decoder reads; made of the labels when absent.
            labels: What the decoder says; -100 is padding.
            kwargs: For the modules of transformers.
        """
        image = self.vision_model(pixel_values=pixel_values, **kwargs).last_hidden_state
        text = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, **kwargs
        ).last_hidden_state
        if self.training:
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        contrast = contrastive(
            self.vision_proj(image[:, 0]), self.text_proj(text[:, 0]), self.logit_scale.exp(), image_numbers
        )
        scores, is_pair = self._matched(image, pair_input_ids, attention_mask, contrast, **kwargs)
        match_losses, match_figure = matching(scores, is_pair)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        logits = None
        if decoder_input_ids is not None:
            logits = self.text_decoder(
                input_ids=decoder_input_ids, encoder_hidden_states=image, use_cache=False, **kwargs
            ).logits
        return BlipPretrainingOutput(
            logits=logits,
            sample_losses={"contrast": contrast.losses, "match": match_losses},
            sample_figures={"accuracy_contrast": _found(contrast), "accuracy_match": match_figure},
        )

    def _matched(
        self,
        image: Float[Tensor, "pair patch width"],
        ids: Int[Tensor, "pair token"],
        mask: Int[Tensor, "pair token"] | None,
        contrast: Contrast,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "three pair 2"], Bool[Tensor, "three pair"]]:
        """Scores of each pair, of each image with another caption, and of each caption with another image.

        Also which of the three there are: a pair has no negatives where the whole batch is of one image.
        """
        texts, images = (
            (drawn_negatives if self.training else next_negatives)(similarities, contrast.same)
            for similarities in (contrast.similarities, contrast.similarities.T)
        )
        own = torch.arange(len(ids), device=ids.device)
        rows, columns = torch.cat([own, texts, own]), torch.cat([own, own, images])
        states = self.text_encoder(
            input_ids=ids[rows],
            attention_mask=None if mask is None else mask[rows],
            encoder_hidden_states=image[columns],
            **kwargs,
        ).last_hidden_state
        there = (~contrast.same).any(1)
        return self.itm_head(states[:, 0]).view(3, len(ids), 2), torch.stack(
            [torch.ones_like(there), there, there]
        )


def contrastive(
    images: Float[Tensor, "pair feature"],
    texts: Float[Tensor, "pair feature"],
    scale: Float[Tensor, ""],
    image_numbers: Int[Tensor, " pair"],
) -> Contrast:
    """The contrastive loss of pairs with the others of their batch, in nats.

        loss_i = -1/2 sum_j t_ij (log softmax_j(s u_i . v_j) + log softmax_j(s v_i . u_j))
        t_ij = [image i = image j] / number of pairs of image i

    u and v are the features of images and captions at length one, s the scale. Radford et al. 2021
    (arXiv:2103.00020), figure 3; with several captions of an image in a batch, their targets are equal parts, as
    BLIP has them in fine-tuning on retrieval (models/blip_retrieval.py).
    """
    similarities = scale * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    same = image_numbers[:, None] == image_numbers[None, :]
    targets = same.to(similarities.dtype) / same.sum(1, keepdim=True)
    both = similarities.log_softmax(1) + similarities.T.log_softmax(1)
    return Contrast(-(targets * both).sum(1) / 2, similarities, same)


def drawn_negatives(
    similarities: Float[Tensor, "pair other"], same: Bool[Tensor, "pair other"]
) -> Int[Tensor, " pair"]:
    """For each row another column, drawn by the softmax of the similarities; never of the same image.

    BLIP, section 3.2. A row without any other column gets its own number.
    """
    with torch.no_grad():
        chances = (similarities.float().softmax(1) + LEAST_CHANCE).masked_fill(same, 0)
        alone = same.all(1)
        # A row of zeros cannot be drawn from; what is drawn there is not read.
        chances = chances.masked_fill(alone[:, None], 1)
        drawn = chances.multinomial(1)[:, 0]
        return torch.where(alone, torch.arange(len(same), device=same.device), drawn)


def next_negatives(
    similarities: Float[Tensor, "pair other"], same: Bool[Tensor, "pair other"]
) -> Int[Tensor, " pair"]:
    """For each row the next column, in a circle, that is not of the same image; its own number if there is none."""
    n_pairs = len(same)
    columns = torch.arange(n_pairs, device=same.device)
    steps = (columns[None, :] - columns[:, None]) % n_pairs
    return steps.masked_fill(same, n_pairs).argmin(1).where(~same.all(1), columns)


def matching(
    scores: Float[Tensor, "three pair 2"], there: Bool[Tensor, "three pair"]
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " 2"]]:
    """The matching loss of each pair and its two negatives, in nats, and the sum and number of its accuracies.

    Cross entropy of (no, yes), the mean of the three, or of the pair alone where it has no negatives. An accuracy is
    the mean of that of the pair and that of its negatives.
    """
    answers = torch.zeros(scores.shape[:2], dtype=torch.long, device=scores.device)
    answers[0] = 1
    losses = functional.cross_entropy(scores.float().flatten(0, 1), answers.flatten(), reduction="none")
    counted = losses.view_as(answers) * there
    right = (scores.argmax(-1) == answers).to(losses.dtype)
    accuracies = (right[0] + right[1:].mean(0)) / 2
    compared = there[1].to(losses.dtype)
    return counted.sum(0) / there.sum(0), torch.stack(
        [(accuracies * compared).sum(), compared.sum()]
    ).detach()


def fine_tuned(model: BlipForPretraining, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The model of another BLIP class with the parts and weights of this one.

    Args:
        model: What was pre-trained.
        model_class: ``BlipForQuestionAnswering``, ``BlipForConditionalGeneration`` or ``BlipForImageTextRetrieval``
            of transformers.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = None
    own = model_class._from_config(config)
    weights = model.state_dict()
    own.load_state_dict({name: weights[name] for name in own.state_dict()})
    own.tie_weights()
    return as_seq2seq(own).eval()


def _found(contrast: Contrast) -> Float[Tensor, " 2"]:
    with torch.no_grad():
        found = [
            contrast.same.gather(1, similarities.argmax(1, keepdim=True)).sum()
            for similarities in (contrast.similarities, contrast.similarities.T)
        ]
        total = torch.stack(found).sum().float()
        return torch.stack([total, total.new_tensor(2.0 * len(contrast.same))])
