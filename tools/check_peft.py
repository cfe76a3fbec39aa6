"""Does an adapter written by silkie open in peft, and mean the same there? Used by hand, not in CI.

    silkie score --model MODEL --adapter ADAPTER --data SHARDS …           # ours
    python tools/check_peft.py --model MODEL --adapter ADAPTER [--goldens DIR]

peft.PeftModel loads the adapter onto the PyTorch model of tools/peers; every tensor must find its place,
and logits must equal those of the peer's own reading of the two matrices, and of W + scale B A merged.
With --goldens (a folder whose tiny-qwen-vl is MODEL) the recorded policy log-probs must come out too.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from qwen_vl import QwenVL, load, load_adapter, picture_names, token_log_probs  # noqa: E402

LOGIT_BOUND = 1e-4
LOG_PROB_BOUND = 1e-3


def open_in_peft(model_dir: Path, adapter_dir: Path) -> PeftModel:
    """The adapter on the base, by peft alone."""
    config = PeftConfig.from_pretrained(adapter_dir)
    config.task_type = None  # the peer is no transformers class; the task only picks a generate wrapper
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load(model_dir), adapter_dir, config=config)
    lost = [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message)]
    if lost:
        sys.exit(f"check_peft: {lost[0]}")
    return model


def same(what: str, got: Tensor, want: Tensor, bound: float) -> None:
    """Prints the worst difference; ends the program past the bound."""
    worst = float((got - want).abs().max())
    print(f"{what:<48} {worst:.2e} (bound {bound:.0e})")
    if not worst <= bound:
        sys.exit(f"check_peft: {what} differ")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--goldens", type=Path)
    options = parser.parse_args()
    in_peft = open_in_peft(options.model, options.adapter)
    written = load_file(options.adapter / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(in_peft)
    if loaded.keys() != written.keys():
        sys.exit(f"check_peft: names differ: {sorted(loaded.keys() ^ written.keys())[:4]}")
    print(f"{len(written)} tensors, every name known to peft")
    peer = load(options.model)
    load_adapter(peer, options.adapter)
    text = torch.arange(60)[None] * 7 % (peer.config["visual"]["image_start_id"] - 1)
    base: QwenVL = in_peft.base_model.model
    same("logits, peft against the peer's own LoRA", base(text), peer(text), LOGIT_BOUND)
    if options.goldens:
        facts = json.loads((options.goldens / "dpo.json").read_text())
        tensors = load_file(options.goldens / "dpo.safetensors") | load_file(options.goldens / "forward.safetensors")
        for side in ("chosen", "rejected"):
            for i, want in enumerate(facts["lora_dpo"][f"policy_{side}_logps"]):
                ids, labels = tensors[f"pair{i}.{side}_input_ids"], tensors[f"pair{i}.{side}_labels"]
                names = picture_names(ids, base.config["visual"]["image_start_id"])
                images = [tensors[facts["images"][n].split(":")[1]] for n in names]
                logits = base(ids[None], torch.stack(images) if images else None)[0]
                got = token_log_probs(logits, ids, labels).sum()
                same(f"log-prob of pair {i} {side}", got, torch.tensor(want), LOG_PROB_BOUND)
    merged = in_peft.merge_and_unload()
    same("logits, merged against beside", merged(text), peer(text), LOGIT_BOUND)


if __name__ == "__main__":
    main()
