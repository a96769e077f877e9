"""diffusers' FluxFillPipeline of a directory, as it is and under true guidance."""

import contextlib

import diffusers
import torch

from tests.support import tiny_fill


def opened(directory, dtype=torch.float32):
    pipeline = diffusers.FluxFillPipeline.from_pretrained(directory, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline if dtype == torch.float32 else pipeline.to(dtype)


@contextlib.contextmanager
def guided(pipeline, scale, records, negative_2=tiny_fill.FILL_NEGATIVE):
    """diffusers' transformer under true guidance; keeps (tokens, σ, velocity) of every step.

    Args:
      negative_2: what T5 reads of the negative prompt.
    """
    plain = pipeline.transformer.forward
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt(
            [tiny_fill.FILL_NEGATIVE] * 2, [negative_2] * 2, max_sequence_length=tiny_fill.T5_LENGTH
        )

    def forward(hidden_states, timestep, pooled_projections, encoder_hidden_states, **rest):
        velocity = plain(
            hidden_states=hidden_states,
            timestep=timestep,
            pooled_projections=pooled_projections,
            encoder_hidden_states=encoder_hidden_states,
            **rest,
        )[0]
        if scale != 1.0:
            negative = plain(
                hidden_states=hidden_states,
                timestep=timestep,
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                **rest,
            )[0]
            velocity = negative + scale * (velocity - negative)
        records.append((hidden_states[..., :16].float().numpy(), timestep.float().numpy(), velocity.float().numpy()))
        return (velocity,)

    pipeline.transformer.forward = forward
    try:
        yield
    finally:
        pipeline.transformer.forward = plain
