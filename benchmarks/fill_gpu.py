"""Compares FLUX.1-Fill's transformer at full size on one GPU with diffusers under torch.compile in the same run.

    pip install -e '.[gpu,parity]'
    python -m benchmarks.fill_gpu                  # H100 of 80 GB; needs no weights and no network
    python -m benchmarks.fill_gpu --model miniature/base --side 64 --text 16 --batch 1 2 --steps 4 --repeats 3

Prints milliseconds per velocity for each batch size, with its share of the bfloat16 matrix rate measured in the same
process, and seconds per image of a whole fill with true guidance, from pixels to pixels, with prompts encoded
beforehand.
Weights are random bfloat16 numbers, made on the device. Each library runs in a process of its own, since each reserves
the device's memory; `--only` runs one of them, where one environment cannot hold both. The second command does the same
with the miniature on a CPU.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import median_seconds
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.errors import UserError

GOLDENS = Path(__file__).parents[1] / "tests" / "goldens"
PROMPTS = ["a small red circle", "nsfw"]


def config_of(model: Path | None, kind: str) -> dict[str, Any]:
    """Read a component's config.json from a directory in diffusers layout, or FLUX.1-Fill-dev's."""
    if model is not None:
        return json.loads((model / kind / "config.json").read_text())
    return json.loads((GOLDENS / f"flux.1-fill-dev.{kind}.json").read_text())["config"]


def report(who: str, batch: int, seconds: float, flops: float, rate: float) -> None:
    share = flops / seconds / rate
    print(f"  {who}, batch {batch}: {1000 * seconds:.1f} ms per velocity, {share:.0%} of the matrix rate", flush=True)


# ---------------------------------------------------------------------------------------------------------------- ours


def ours(args: argparse.Namespace) -> dict[str, float]:
    """Measure {"attention, batch": seconds per velocity, "fill": seconds per image}."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from onereward_jax import tree
    from onereward_jax.fill.pipeline import FillPipeline
    from onereward_jax.fill.prompts import PromptEncoder
    from onereward_jax.flow import conditioning
    from onereward_jax.flow.schedule import Shift
    from onereward_jax.planning.cost import cost_of
    from onereward_jax.proving_ground.tokenizers import write_clip_tokenizer, write_t5_tokenizer
    from onereward_jax.weights.component_kinds import kind_of
    from onereward_jax.weights.load import param_shapes

    def component(kind: str, **changes: Any) -> tuple[Any, Any]:
        """Return a module and random parameters."""
        weights = kind_of(kind).module()
        module = weights.module_from_config(config_of(args.model, kind) | changes, dtype=jnp.bfloat16)

        def leaf(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
            if path.endswith(("scale", "layer_norm/weight")):
                return jnp.ones(shape.shape, jnp.bfloat16)
            # "rbg" compiles quickly.
            key = jax.random.key(zlib.crc32(path.encode()), impl="rbg")
            return 0.02 * jax.random.normal(key, shape.shape, jnp.bfloat16)

        return module, jax.jit(lambda: tree.map_with_path(leaf, param_shapes(module, kind)))()

    device = jax.devices()[0]
    if device.platform == "cpu" and args.model is None:
        raise UserError("JAX sees no GPU: `pip install -e '.[gpu]'`, or take a small --model, see --help")
    rate_of = jnp.ones((args.square, args.square), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    (seconds,) = median_seconds([lambda: multiply(rate_of, rate_of).block_until_ready()], args.repeats)
    rate = 2 * args.square**3 / seconds
    print(f"jax {jax.__version__}, {device.device_kind}: {rate / 1e12:.4g} TFLOP/s in bfloat16 matrix products")

    module, params = component("transformer")
    vae, vae_params = component("vae")
    latent = args.side // conditioning.vae_factor(vae)
    ids = conditioning.image_ids(latent, latent)
    found: dict[str, float] = {}
    attentions = args.attention or (["cudnn", "xla"] if device.platform == "gpu" else ["xla"])
    for attention in attentions:
        transformer = module.clone(attention_implementation=attention)
        apply = jax.jit(lambda params, *x, transformer=transformer: transformer.apply({"params": params}, *x))
        for batch in args.batch:
            normal = lambda n, *shape: jax.random.normal(jax.random.key(n), shape, jnp.bfloat16)
            tokens = (
                normal(0, batch, len(ids), module.in_channels),
                normal(1, batch, args.text, module.joint_attention_dim),
            )
            scalars = normal(2, batch, module.pooled_projection_dim), jnp.full(batch, 0.5), ids
            inputs = (*tokens, *scalars, np.zeros((args.text, 3), np.float32), jnp.ones(batch))
            flops = cost_of(lambda params, *x: module.apply({"params": params}, *x), params, *inputs).flops
            if attention == attentions[0]:
                print(
                    f"  {flops / 1e12:.4g} TFLOP per velocity of batch {batch}: at least {1000 * flops / rate:.1f} ms"
                )
            call = lambda: apply(params, *inputs).block_until_ready()  # noqa: B023
            (found[f"{attention}, {batch}"],) = median_seconds([call], args.repeats)
            report(f"ours with {attention} attention", batch, found[f"{attention}, {batch}"], flops, rate)

    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = write_clip_tokenizer(Path(scratch) / "clip", PROMPTS, model_max_length=77)
        tokenizer_2 = write_t5_tokenizer(Path(scratch) / "t5", PROMPTS)
    # Two layers of each text encoder suffice: the output shapes are the same.
    clip, clip_params = component("text_encoder", num_hidden_layers=2, eos_token_id=tokenizer.eos_token_id)
    t5, t5_params = component("text_encoder_2", num_layers=2)
    prompts = PromptEncoder(tokenizer, tokenizer_2, clip, t5, clip_params, t5_params)
    transformer = module.clone(attention_implementation=attentions[0])
    pipeline = FillPipeline(transformer, vae, {"transformer": params, "vae": vae_params}, prompts, Shift())
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (args.side, args.side, 3), np.uint8)
    mask = np.zeros((args.side, args.side), bool)
    mask[args.side // 4 : -args.side // 4, args.side // 4 : -args.side // 4] = True
    settings = {"num_inference_steps": args.steps, "guidance_scale": 1.0, "true_cfg_scale": 4.0}
    settings |= {"max_sequence_length": args.text, "negative_prompt": PROMPTS[1]}
    fill = lambda: pipeline(prompt=PROMPTS[0], image=image, mask_image=mask, **settings)
    (found["fill"],) = median_seconds([fill], max(1, args.repeats // 5))
    print(
        f"  ours with {attentions[0]} attention: {args.steps} steps with true guidance {found['fill']:.2f} s per image"
    )
    return found


# ----------------------------------------------------------------------------------------------------------- diffusers


def theirs(args: argparse.Namespace) -> dict[str, float]:
    """Measure {"batch": seconds per velocity}."""
    import diffusers
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else "cpu"

    def timed(function: Callable[[], Any]) -> float:
        def call() -> None:
            with torch.no_grad():
                function()
            if cuda:
                torch.cuda.synchronize()

        call()  # max-autotune records its graphs in the second call
        return median_seconds([call], args.repeats)[0]

    square = torch.ones((args.square, args.square), dtype=torch.bfloat16, device=device)
    rate = 2 * args.square**3 / timed(lambda: square @ square)
    version = f"diffusers {diffusers.__version__}, torch {torch.__version__}"
    print(f"{version}, {name}: {rate / 1e12:.4g} TFLOP/s in bfloat16 matrix products", flush=True)

    config = config_of(args.model, "transformer")
    torch.set_default_dtype(torch.bfloat16)  # so that no float32 copy is made
    with device:
        model = diffusers.FluxTransformer2DModel.from_config(config).eval()
    torch.set_default_dtype(torch.float32)
    compiled = torch.compile(model, mode=args.compile, fullgraph=True, dynamic=False)
    vae = config_of(args.model, "vae")
    side = args.side // 2 ** len(vae["block_out_channels"])  # tokens
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    found: dict[str, float] = {}
    for batch in args.batch:
        normal = lambda *shape: torch.randn(shape, dtype=torch.bfloat16, device=device)
        inputs = {
            "hidden_states": normal(batch, side * side, config["in_channels"]),
            "encoder_hidden_states": normal(batch, args.text, config["joint_attention_dim"]),
            "pooled_projections": normal(batch, config["pooled_projection_dim"]),
            "timestep": torch.full((batch,), 0.5, dtype=torch.bfloat16, device=device),
            "img_ids": torch.stack([0 * rows, rows, columns], -1).reshape(-1, 3).to(device, torch.bfloat16),
            "txt_ids": torch.zeros(args.text, 3, dtype=torch.bfloat16, device=device),
            "guidance": torch.ones(batch, device=device) if config.get("guidance_embeds") else None,
        }
        seconds = timed(lambda: compiled(**inputs, return_dict=False))  # noqa: B023
        found[str(batch)] = seconds
        print(
            f"  diffusers, torch.compile {args.compile}, batch {batch}: {1000 * seconds:.1f} ms per velocity",
            flush=True,
        )
    return found


def check_installed() -> None:
    """Check for diffusers and torch before our own measurement takes minutes.

    Raises:
      UserError: a library is missing.
    """
    missing = [name for name in ("diffusers", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} are not installed: `pip install -e '.[parity]'`, or measure ours by --only ours"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="take the configurations in this directory instead")
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--text", type=int, default=512, help="tokens of T5")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=50, help="steps of the whole fill")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--square", type=int, default=8192, help="side of the matrices whose product gives the rate")
    parser.add_argument("--attention", nargs="+", choices=("cudnn", "xla"), help="default: both, on a CPU xla")
    parser.add_argument("--compile", default="max-autotune", help="mode of torch.compile")
    parser.add_argument("--only", choices=("ours", "diffusers"))
    parser.add_argument("--json", type=Path, help="write the seconds to this file")
    args = parser.parse_args()
    if args.only:
        found = ours(args) if args.only == "ours" else theirs(args)
        if args.json:
            args.json.write_text(json.dumps(found))
        return 0
    check_installed()
    print(f"{args.model or 'FLUX.1-Fill-dev'}, {args.side} x {args.side} pixels, {args.text} text tokens, bfloat16")
    results = {}
    for who in ("ours", "diffusers"):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "seconds.json"
            given = [*sys.argv[1:], "--only", who, "--json", str(file)]
            run = subprocess.run([sys.executable, "-m", "benchmarks.fill_gpu", *given])
            if run.returncode:
                return run.returncode
            results[who] = json.loads(file.read_text())
    for name, seconds in results["ours"].items():
        attention, _, batch = name.partition(", ")
        if batch:
            ratio = seconds / results["diffusers"][batch]
            print(f"ours with {attention} attention, batch {batch}: {ratio:.2f} times diffusers' time")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
