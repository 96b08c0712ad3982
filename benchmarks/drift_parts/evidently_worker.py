"""Evidently's defaults on windows of texts; runs in the scratch environment that `peers` makes, without tuneloop.

Reads {"reference": [...], "windows": [[...], …]} from stdin; writes whether each window drifted, and the seconds it
took.
"""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import pandas as pd
from evidently import DataDefinition, Dataset, Report  # type: ignore[import-not-found]
from evidently.presets import DataDriftPreset  # type: ignore[import-not-found]


def main() -> None:
    """Judge every window as `DataDriftPreset` does when nothing is set."""
    asked = json.load(sys.stdin)
    columns = DataDefinition(text_columns=["text"])
    drifted = []
    begun = time.perf_counter()
    for stream in asked:
        reference = Dataset.from_pandas(pd.DataFrame({"text": stream["reference"]}), columns)
        row = []
        for window in stream["windows"]:
            current = Dataset.from_pandas(pd.DataFrame({"text": window}), columns)
            found = Report([DataDriftPreset()]).run(current, reference).dict()
            row.append(found["metrics"][0]["value"]["count"] > 0)
        drifted.append(row)
    json.dump({"drifted": drifted, "seconds": time.perf_counter() - begun}, sys.stdout)


if __name__ == "__main__":
    main()
