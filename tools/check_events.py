#!/usr/bin/env python3
"""Opens a run's TensorBoard event file with the `tensorboard` package and compares it with
metrics.jsonl. Not part of CI: pip install tensorboard, then tools/check_events.py RUN"""

import json
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train": {
        "loss": "train/loss",
        "chosen_reward": "train/reward/chosen",
        "rejected_reward": "train/reward/rejected",
        "margin": "train/reward/margin",
        "accuracy": "train/accuracy",
        "grad_norm": "train/grad_norm",
        "lr": "train/lr",
    },
    "evaluation": {
        "loss": "evaluation/loss",
        "accuracy": "evaluation/accuracy",
        "ranking_accuracy": "evaluation/ranking_accuracy",
        "margin": "evaluation/reward/margin",
    },
}


def main(run: Path) -> None:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    checked = 0
    for kind, tags in TAGS.items():
        wanted = [row for row in rows if row["kind"] == kind]
        for key, tag in tags.items():
            found = events.Scalars(tag) if wanted else []
            assert [e.step for e in found] == [row["step"] for row in wanted], f"{tag}: other steps"
            for event, row in zip(found, wanted):
                value = math.nan if row[key] is None else row[key]
                same = math.isclose(event.value, value, rel_tol=1e-6, abs_tol=1e-30)
                assert same or math.isnan(value), f"{tag}, step {row['step']}: {event.value} {value}"
                checked += 1
    print(f"{run}: {checked} values in {len(events.Tags()['scalars'])} curves agree with metrics.jsonl")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
