"""Compares the time of one velocity and one decoding with diffusers: same weights, machine, threads and dtype.

    python -m benchmarks.fill MODEL [--side 256] [--text 64] [--threads 2] [--repeats 3]

MODEL is a directory in diffusers layout: miniature/base, or one written by `benchmarks.random_checkpoint write`. Both
compute in float32; ours is compiled, diffusers is not. Calls alternate and the median counts, so that other load on the
machine affects both. Needs torch and diffusers (the `parity` extra).
"""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.timing import median_seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--text", type=int, default=64, help="tokens of T5")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # JAX takes as many threads as cores

    import diffusers
    import jax
    import numpy as np
    import torch

    from onereward_jax.flow import conditioning
    from onereward_jax.weights.load import load_component

    torch.set_num_threads(args.threads)
    draw = np.random.default_rng(0)
    normal = lambda *shape: draw.standard_normal(shape).astype(np.float32)

    transformer, params = load_component(args.model / "transformer", "transformer")
    vae, vae_params = load_component(args.model / "vae", "vae")
    their_transformer = diffusers.FluxTransformer2DModel.from_pretrained(args.model / "transformer").eval()
    their_vae = diffusers.AutoencoderKL.from_pretrained(args.model / "vae").eval()
    params, vae_params = jax.device_put((params, vae_params))

    latent = args.side // conditioning.vae_factor(vae)
    ids = conditioning.image_ids(latent, latent)
    tokens = [normal(1, len(ids), transformer.in_channels), normal(1, args.text, transformer.joint_attention_dim)]
    tokens += [normal(1, transformer.pooled_projection_dim), np.float32([0.5])]
    places = [ids, np.zeros((args.text, 3), np.float32), np.float32([1.0])]
    latents = normal(1, latent, latent, vae.latent_channels)

    forward = jax.jit(lambda params, *x: transformer.apply({"params": params}, *x))
    decode = jax.jit(lambda params, z: vae.apply({"params": params}, z, method="decode"))
    as_torch = [torch.from_numpy(x) for x in (*tokens, *places)]
    names = (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
        "txt_ids",
        "guidance",
    )
    inputs = dict(zip(names, as_torch, strict=True))
    if not transformer.guidance_embeds:
        inputs["guidance"] = None
    their_latents = torch.from_numpy(latents).permute(0, 3, 1, 2)

    def their_velocity():
        with torch.no_grad():
            return their_transformer(**inputs, return_dict=False)[0].numpy()

    def their_decode():
        with torch.no_grad():
            return their_vae.decode(their_latents).sample.permute(0, 2, 3, 1).numpy()

    pairs = {
        "velocity": (lambda: np.asarray(forward(params, *tokens, *places)), their_velocity),
        "decoding": (lambda: np.asarray(decode(vae_params, latents)), their_decode),
    }
    print(f"{args.model}, {args.side} x {args.side} pixels, {args.text} text tokens, {args.threads} threads, float32")
    for name, (ours, theirs) in pairs.items():
        a, b = ours(), theirs()
        error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        mine, others = median_seconds([ours, theirs], args.repeats)
        times = f"{1000 * mine:.0f} ms, diffusers {1000 * others:.0f} ms: {mine / others:.2f} times"
        print(f"  {name}: {times}; relative difference {error:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
