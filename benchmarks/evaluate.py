"""Time and memory of scoring 4e8 voxels: `python benchmarks/evaluate.py`.

Writes logits of wavy vesicles in noise and their labels to a temporary folder, scores them (Dice, IoU,
precision, recall, the precision-recall curve and AUPRC; with --full surfaces and details too) in a
process of its own, and prints one JSON line. `ratio` is the time over that of one plain NumPy pass over
both files in the same process: read each slice, compare it with the threshold, count. AUPRC of a part is
held against scikit-learn's. Bars: 20 s, 500 MB and 1e-6 for 370 x 1040 x 1040.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from postprocess import mask_slice

from etsam.metrics import ScoreHistogram
from etsam.volume import create_volume, open_tomogram, tomogram_from_array

SCORE = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from etsam.evaluate import EvaluateOptions, evaluate
from etsam.pairing import Pairing
from etsam.predictions import Prediction
scores, labels, full = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
options = EvaluateOptions(surface=full, details=full)
idle = resource.getrusage(resource.RUSAGE_SELF)
start = time.perf_counter()
found = evaluate([Pairing(Prediction(scores, "benchmark", kind="logits"), labels, "d", "r")], options)
seconds = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_SELF)
start, count = time.perf_counter(), 0
shape = tuple(json.loads(sys.argv[4]))
files = [np.memmap(p, t, "r", 1024, shape) for p, t in ((scores, "<f4"), (labels, "i1"))]
for plane, truth in zip(*files):
    count += np.count_nonzero((plane > 0) & (truth == 1))
plain = time.perf_counter() - start
print(json.dumps({
    "seconds": round(seconds, 2),
    "cpu_seconds": round(used.ru_utime + used.ru_stime - idle.ru_utime - idle.ru_stime, 2),
    "plain_pass_seconds": round(plain, 2),
    "ratio": round(seconds / plain, 1),
    "peak_rss_mb": used.ru_maxrss // 1024,
    "rss_at_start_mb": idle.ru_maxrss // 1024,
    **{row.metric: round(row.value, 6) for row in found[0].rows},
}))
"""


def write_pair(folder: Path, shape: tuple[int, int, int], vesicles: int) -> tuple[Path, Path]:
    """Write logits that mostly agree with their labels, and the labels."""
    depth, height, width = shape
    random = np.random.default_rng(0)
    low, high = (0, 0, 30, 0), (height, width, 160, depth)
    places = random.uniform(low, high, (vesicles, 4))
    like = tomogram_from_array(np.broadcast_to(np.int8(0), shape), voxel_spacing=10.0)
    scores, labels = folder / "a_membrane_logits.mrc", folder / "a_labels.mrc"
    noise = random.normal(size=2 * height * width).astype(np.float32)
    with (
        create_volume(scores, like, dtype="float32", label="benchmark") as logits,
        create_volume(labels, like, dtype="int8", label="benchmark") as truth,
    ):
        for z in range(depth):
            mask = mask_slice(z, (height, width), places)
            start = int(random.integers(height * width))
            plane = noise[start : start + height * width].reshape(height, width)
            logits.write_slice(z, 3 * plane - 6 + 7 * mask.astype(np.float32))
            truth.write_slice(z, mask)
    return scores, labels


def difference(scores: Path, labels: Path, slices: int) -> float:
    """Return by how much AUPRC of the middle slices differs from scikit-learn's."""
    from sklearn.metrics import average_precision_score

    with open_tomogram(scores) as logits, open_tomogram(labels) as truth:
        first = (logits.shape[0] - slices) // 2
        values = logits.read_slices(first, first + slices).ravel()
        true = truth.read_slices(first, first + slices).ravel()
    histogram = ScoreHistogram()
    histogram.add(values, true)
    wanted = average_precision_score(true == 1, values)
    return float(abs(histogram.curve().average_precision - wanted))


def main() -> None:
    """Make the volumes, score them, print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(370, 1040, 1040), metavar="N")
    parser.add_argument("--vesicles", type=int, default=25)
    parser.add_argument("--sample", type=int, default=4, help="slices held against scikit-learn")
    parser.add_argument("--full", action="store_true", help="surfaces and details too")
    given = parser.parse_args()
    shape = tuple(given.shape)
    with tempfile.TemporaryDirectory() as folder:
        files = write_pair(Path(folder), shape, given.vesicles)
        command = [sys.executable, "-c", SCORE, *map(str, files), str(given.full)]
        done = subprocess.run(
            [*command, json.dumps(shape)], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout)
        found["auprc_minus_scikit_learn"] = difference(*files, min(given.sample, shape[0]))
    print(json.dumps({"shape": list(shape), **found}))


if __name__ == "__main__":
    main()
