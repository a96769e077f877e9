"""Supervised losses: the autoencoder's, and flow matching.

They have the form that `training.state.supervised_step` takes: loss(params, frozen, batch, key) -> (value, metrics).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.schedule import Shift, shift_sigma


def vae_loss(vae: Any, kl_weight: float = 1e-6, edge_weight: float = 0.5, square_weight: float = 3.0) -> Callable:
    """Make the autoencoder's loss.

    It sums the absolute error of pixels and of differences between neighbours (which keeps strokes sharp), the squared
    error (which keeps rare saturated colours from fading), and the KL divergence of the posterior from a unit normal.

    A batch holds image: uint8 (B, H, W, 3), and index: int32 (B,).
    """

    def loss(params, frozen, batch, key):
        del frozen
        images = conditioning.to_model_range(batch["image"])
        mean, log_variance = vae.apply({"params": params}, images, method="encode")
        noise = _normal(key, batch["index"], mean.shape[1:])
        decoded = vae.apply({"params": params}, mean + jnp.exp(0.5 * log_variance) * noise, method="decode")
        pixels = jnp.abs(decoded - images).mean()
        edges = sum(jnp.abs(jnp.diff(decoded - images, axis=axis)).mean() for axis in (1, 2))
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean()
        square = jnp.square(decoded - images).mean()
        metrics = {"learning/pixels": pixels, "learning/kl": kl, "learning/psnr": -10 * jnp.log10(square / 4)}
        return pixels + edge_weight * edges + square_weight * square + kl_weight * kl, metrics

    return loss


def latent_statistics(vae: Any, params: Any, images: jax.Array) -> tuple[float, float]:
    """Return (scaling_factor, shift_factor) that normalise latents of uint8 images (B, H, W, 3) to mean 0 and std 1."""
    mean, _ = vae.apply({"params": params}, conditioning.to_model_range(images), method="encode")
    return float(1.0 / mean.std()), float(mean.mean())


def flow_matching_loss(
    transformer: Any,
    image_size: tuple[int, int],
    text_encoder: Any = None,
    text_encoder_2: Any = None,
    *,
    prompt_dropout: float = 0.1,
    guidance_scale: float = 1.0,
    shift: Shift = Shift(),  # noqa: B008 (frozen)
) -> Callable:
    """Make the flow-matching loss `‖v_θ(x_σ) − (ε − x)‖²` of a Fill model, σ logit-normal and shifted by resolution.

    Args:
      image_size: height and width of the latents.
      text_encoder, text_encoder_2: CLIP and T5 if they are trained with the transformer (the miniature); params
        then holds their trees beside "transformer".
      prompt_dropout: share of samples that get the empty prompt, so that the negative branch of true guidance is
        trained.

    A batch holds latents that are already encoded (`conditioning.encode_sample`):
      index (B,); data, masked_image (B, N, 4C); mask (B, N, 4f²);
      clip_ids, t5_ids, empty_clip_ids, empty_t5_ids (B, ·) if the text encoders are trained, otherwise
      prompt_embeds, pooled and, for the empty prompt, negative_prompt_embeds, negative_pooled (B, ...).
    """
    ids = conditioning.image_ids(*image_size)

    def prompts(params, batch, dropped):
        """Return prompt_embeds and pooled for each sample's prompt, or for the empty one."""
        choose = lambda negative, positive: jnp.where(
            dropped.reshape(-1, *[1] * (positive.ndim - 1)), negative, positive
        )
        if text_encoder is None:
            return (
                choose(batch["negative_prompt_embeds"], batch["prompt_embeds"]),
                choose(batch["negative_pooled"], batch["pooled"]),
            )
        clip_ids = choose(batch["empty_clip_ids"], batch["clip_ids"])
        t5_ids = choose(batch["empty_t5_ids"], batch["t5_ids"])
        _, pooled = text_encoder.apply({"params": params["text_encoder"]}, clip_ids)
        return text_encoder_2.apply({"params": params["text_encoder_2"]}, t5_ids), pooled

    def loss(params, frozen, batch, key):
        del frozen
        data, mask = batch["data"], batch["mask"]
        noise = _normal(key, batch["index"], data.shape[1:])
        draws = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), 1)))(batch["index"])
        sigma = jax.nn.sigmoid(jax.vmap(jax.random.normal)(draws[:, 0]))
        sigma = shift_sigma(sigma, shift.factor(len(ids)))
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, prompt_dropout))(draws[:, 1])

        condition = conditioning.Condition(batch["masked_image"], mask, *prompts(params, batch, dropped))
        velocity = sampler.velocity_of(transformer, params["transformer"], condition, ids, guidance_scale)
        level = sigma[:, None, None]
        error = jnp.square(velocity((1 - level) * data + level * noise, sigma) - (noise - data))
        hole = mask.mean(axis=-1, keepdims=True)  # the part to generate
        metrics = {"learning/error_in_hole": (error * hole).mean() / hole.mean()}
        return error.mean(), metrics

    return loss


def fill_loss(transformer: Any, vae: Any, *, prompt_dropout: float, guidance_scale: float, shift: Shift) -> Callable:
    """Make a `flow_matching_loss` that encodes images on the fly, since their masks are new every time.

    Params hold {"transformer", "vae"}; in place of latents, a batch has image: uint8 (B, H, W, 3) and mask: uint8
    (B, H, W), 1 = generate. As in `conditioning.encode_sample`, latents are the posteriors' modes.
    """

    def loss(params, frozen, batch, key):
        del frozen
        image, factor = batch["image"], conditioning.vae_factor(vae)
        matching = flow_matching_loss(
            transformer,
            (image.shape[1] // factor, image.shape[2] // factor),
            prompt_dropout=prompt_dropout,
            guidance_scale=guidance_scale,
            shift=shift,
        )
        latents = conditioning.encode_sample(vae, params["vae"], image, batch["mask"], image)
        return matching(params, None, batch | latents, key)

    return loss


def _normal(key: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normals (B, *shape), each sample's from its global index."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(index)
