"""BLIP's answering and captioning models in the form of an encoder-decoder: labels in, logits of every label out.

Upstream's model for questions returns no logits, its model for captions returns those of its prompt too, and both
read labels that begin with the start token and shift them themselves. The classes here have the same parameters under
the same names, write the same checkpoints, which name upstream's class, and take the batches of
:class:`amad.data.blip_collate.BlipCollator`: ``labels`` are the tokens to say, the closing ``[SEP]`` last, and
position t of the logits predicts label t.

With the same tokens, logits and losses are those of upstream, but for one thing: padding of a question is hidden from
the answer decoder, as by BLIP's authors (models/blip_vqa.py), where upstream shows it; see :mod:`amad.models.blip`.
"""

from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput

from amad.errors import RecipeError
from amad.models.blip import DispatchedBlipTextSelfAttention, dispatch_attention

IGNORED_LABEL = -100

# What the trainer's batches hold beside the inputs of generation.
_TARGETS = ("labels", "answer_counts", "decoder_input_ids", "decoder_attention_mask")

_RANKED_ROWS = 512
"""So many answers are read at a time when they are ranked."""


def as_seq2seq(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, on fast attention, and in the form above if it is BLIP for questions or for captions.

    Any other model is returned as :func:`amad.models.blip.dispatch_attention` returns it.

    Args:
        model: Changed in place: its class, and what ``dispatch_attention`` changes; no parameter.
    """
    dispatch_attention(model)
    if type(model) is transformers.BlipForQuestionAnswering:
        model.__class__ = BlipForQuestionAnswering
    elif type(model) is transformers.BlipForConditionalGeneration:
        model.__class__ = BlipForConditionalGeneration
    if isinstance(model, BlipForQuestionAnswering):
        for module in model.text_decoder.modules():
            if isinstance(module, DispatchedBlipTextSelfAttention):
                module.hides_padding = True
    return model


def is_seq2seq(model: PreTrainedModel) -> bool:
    """Whether this is BLIP in the form above."""
    return isinstance(model, BlipForQuestionAnswering | BlipForConditionalGeneration)


class BlipForQuestionAnswering(transformers.BlipForQuestionAnswering):  # type: ignore[misc]
    """BLIP for questions: a text encoder that looks at the image, a decoder that looks at the encoded question.

    The name is upstream's, because ``save_pretrained`` writes it into ``config.json``.
    """

    def prepare_decoder_input_ids_from_labels(
        self, labels: Int[Tensor, "answer token"]
    ) -> Int[Tensor, "answer token"]:
        """What the decoder reads to say these labels: ``[DEC]``, then all but the last."""
        start = labels.new_full((len(labels), 1), self.decoder_start_token_id)
        return torch.cat([start, _as_read(labels[:, :-1], self.decoder_pad_token_id)], 1)

    def forward(
        self,
        input_ids: Int[Tensor, "question token"],
        pixel_values: Float[Tensor, "question 3 height width"],
        decoder_input_ids: Int[Tensor, "answer target"] | None = None,
        decoder_attention_mask: Int[Tensor, "answer target"] | None = None,
        attention_mask: Int[Tensor, "question token"] | None = None,
        labels: Int[Tensor, "answer target"] | None = None,
        answer_counts: Int[Tensor, " question"] | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits (answer, target, vocabulary) and, given labels, their mean loss with the configuration's smoothing.

        Args:
            input_ids: Questions.
            pixel_values: Their images.
            decoder_input_ids: What the decoder reads; made of the labels when absent.
            decoder_attention_mask: 1 on real tokens; padding on the right needs none.
            attention_mask: 1 on the real tokens of the questions.
            labels: What to say; -100 is padding.
            answer_counts: How many answers each question has, one after the other; one each when absent. A question
                and its image are read once, whatever the number.
            interpolate_pos_encoding: Stretch the positions of the image, where its size is another.
            kwargs: For the modules of transformers.

        Raises:
            RecipeError: if there is neither ``labels`` nor ``decoder_input_ids``.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise RecipeError(
                    "BLIP needs to know what answers to give logits of. Give labels or decoder_input_ids, or call "
                    "generate."
                )
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        states = self._read(input_ids, pixel_values, attention_mask, interpolate_pos_encoding, **kwargs)
        if answer_counts is not None:
            states = states.repeat_interleave(answer_counts, 0)
            attention_mask = (
                None if attention_mask is None else attention_mask.repeat_interleave(answer_counts, 0)
            )
        logits = self.text_decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            use_cache=False,
            **kwargs,
        ).logits
        return Seq2SeqLMOutput(
            loss=_loss(logits, labels, self.text_decoder.label_smoothing),
            logits=logits,
            encoder_last_hidden_state=states,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "question token"],
        pixel_values: Float[Tensor, "question 3 height width"],
        attention_mask: Int[Tensor, "question token"] | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Int[Tensor, "question token"]:
        """The answers that the decoder says; targets among the arguments are left unread."""
        states = self._read(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens: Tensor = self.text_decoder.generate(
            input_ids=input_ids.new_full((len(input_ids), 1), self.decoder_start_token_id),
            eos_token_id=self.config.text_config.sep_token_id,
            pad_token_id=self.config.text_config.pad_token_id,
            encoder_hidden_states=states,
            encoder_attention_mask=keep,
            **_without_targets(kwargs),
        )
        return tokens

    @torch.no_grad()
    def rank(
        self,
        input_ids: Int[Tensor, "question token"],
        pixel_values: Float[Tensor, "question 3 height width"],
        candidates: Int[Tensor, "candidate target"],
        n_first: int,
        attention_mask: Int[Tensor, "question token"] | None = None,
    ) -> Int[Tensor, " question"]:
        """The most likely candidate of each question, as its row number.

            argmax_a  sum_t log p(a_t | a_<t, question, image)    over the n_first candidates whose first token is
                                                                  the most likely

        Li et al. 2022 (arXiv:2201.12086), models/blip_vqa.py of their code, which sums label-smoothed
        log-probabilities: those also count how likely all other words are. Here they are exact. With as many
        ``n_first`` as candidates the likelihood of every one is compared.

        Args:
            input_ids: Questions.
            pixel_values: Their images.
            candidates: Answers as labels: their tokens, ``[SEP]``, then -100. Each must have a token.
            n_first: How many are compared whole; all if there are fewer.
            attention_mask: 1 on the real tokens of the questions.
        """
        states = self._read(input_ids, pixel_values, attention_mask)
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        start = input_ids.new_full((len(input_ids), 1), self.decoder_start_token_id)
        begins = self._say(start, states, keep)[:, 0].index_select(1, candidates[:, 0])
        chosen = begins.topk(min(n_first, len(candidates)), 1).indices
        questions = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen).flatten()
        likelihoods = []
        for first in range(0, len(questions), _RANKED_ROWS):
            asked = questions[first : first + _RANKED_ROWS]
            rows = chosen.flatten()[first : first + _RANKED_ROWS]
            likelihoods.append(self._log_likelihoods(candidates[rows], states[asked], keep[asked]))
        best = torch.cat(likelihoods).view_as(chosen).argmax(1, keepdim=True)
        return chosen.gather(1, best)[:, 0]

    def _read(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Float[Tensor, "question token width"]:
        """The encoded questions, each with its image."""
        image = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        ).last_hidden_state
        states: Tensor = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image, **kwargs
        ).last_hidden_state
        return states

    def _say(
        self, decoder_input_ids: Tensor, states: Tensor, keep: Tensor
    ) -> Float[Tensor, "answer target vocab"]:
        logits: Tensor = self.text_decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=keep,
            use_cache=False,
        ).logits
        return logits

    def _log_likelihoods(self, labels: Tensor, states: Tensor, keep: Tensor) -> Float[Tensor, " answer"]:
        """The log-probability of each answer, in nats."""
        real = labels != IGNORED_LABEL
        labels, real = labels[:, : int(real.sum(1).max())], real[:, : int(real.sum(1).max())]
        logits = self._say(self.prepare_decoder_input_ids_from_labels(labels), states, keep)
        said = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        return (said * real).sum(1)


class BlipForConditionalGeneration(transformers.BlipForConditionalGeneration):  # type: ignore[misc]
    """BLIP for captions: a decoder that looks at the image and goes on from a prompt.

    ``input_ids`` are the prompt, ``[DEC]`` first and no ``[SEP]``, of one length for the whole batch. The name is
    upstream's, because ``save_pretrained`` writes it into ``config.json``.
    """

    def prepare_decoder_input_ids_from_labels(
        self, labels: Int[Tensor, "caption token"]
    ) -> Int[Tensor, "caption token"]:
        """What the decoder reads after the prompt to say these labels: all but the last of each caption."""
        last = labels[:, 1:] == IGNORED_LABEL
        return _as_read(labels[:, :-1].masked_fill(last, IGNORED_LABEL), self.decoder_pad_token_id)

    def forward(
        self,
        pixel_values: Float[Tensor, "caption 3 height width"],
        input_ids: Int[Tensor, "caption prompt"],
        attention_mask: Int[Tensor, "caption prompt"] | None = None,
        decoder_input_ids: Int[Tensor, "caption read"] | None = None,
        labels: Int[Tensor, "caption target"] | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits of what follows the prompt, and, given labels, their mean loss with the configuration's smoothing.

        The logits are (caption, target, vocabulary), one position more than ``decoder_input_ids``: the last token of
        the prompt predicts the first label.

        Args:
            pixel_values: Images.
            input_ids: Prompts.
            attention_mask: 1 on the tokens of the prompt.
            decoder_input_ids: What is read after the prompt, padding on the right; made of the labels when absent, and
                nothing without labels.
            labels: What to say after the prompt; -100 is padding.
            interpolate_pos_encoding: Stretch the positions of the image, where its size is another.
            kwargs: For the modules of transformers.
        """
        if decoder_input_ids is None:
            decoder_input_ids = (
                input_ids[:, :0] if labels is None else self.prepare_decoder_input_ids_from_labels(labels)
            )
        image = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        ).last_hidden_state
        prompt = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        going_on = (decoder_input_ids != self.decoder_pad_token_id).to(prompt.dtype)
        logits = self.text_decoder(
            input_ids=torch.cat([input_ids, decoder_input_ids], 1),
            attention_mask=torch.cat([prompt, going_on], 1),
            encoder_hidden_states=image,
            use_cache=False,
            logits_to_keep=decoder_input_ids.shape[1] + 1,
            **kwargs,
        ).logits
        return Seq2SeqLMOutput(
            loss=_loss(logits, labels, self.text_decoder.label_smoothing),
            logits=logits,
            encoder_last_hidden_state=image,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Float[Tensor, "caption 3 height width"],
        input_ids: Int[Tensor, "caption prompt"],
        attention_mask: Int[Tensor, "caption prompt"] | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Int[Tensor, "caption token"]:
        """The captions without their prompts, which lengths among the arguments count; targets are left unread."""
        end = input_ids.new_full((len(input_ids), 1), self.config.text_config.sep_token_id)
        # Upstream drops the last token, which its tokenizer makes [SEP].
        tokens: Tensor = super().generate(
            pixel_values,
            torch.cat([input_ids, end], 1),
            None if attention_mask is None else torch.cat([attention_mask, torch.ones_like(end)], 1),
            interpolate_pos_encoding=interpolate_pos_encoding,
            **_without_targets(kwargs),
        )
        return tokens[:, input_ids.shape[1] :]


def _as_read(labels: Tensor, pad: int) -> Tensor:
    return labels.masked_fill(labels == IGNORED_LABEL, pad)


def _without_targets(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in _TARGETS}


def _loss(logits: Tensor, labels: Tensor | None, smoothing: float) -> Tensor | None:
    if labels is None:
        return None
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
