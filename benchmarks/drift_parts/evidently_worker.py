"""Evidently's defaults on windows of texts; runs in the scratch environment that `peers` makes, without tuneloop.

Reads {stream: [reference, windows]} from the first file; writes a line for each stream to the second as it is judged:
whether each window drifted, and the seconds of a core they took.
"""

import json
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import pandas as pd
from evidently import DataDefinition, Dataset, Report  # type: ignore[import-not-found]
from evidently.presets import DataDriftPreset  # type: ignore[import-not-found]


def main() -> None:
    """Judge every window as `DataDriftPreset` does when nothing is set."""
    asked, said = Path(sys.argv[1]), Path(sys.argv[2])
    columns = DataDefinition(text_columns=["text"])
    with said.open("w", encoding="utf-8") as lines:
        for number, (usual, windows) in json.loads(asked.read_text(encoding="utf-8")).items():
            begun = time.process_time()
            reference = Dataset.from_pandas(pd.DataFrame({"text": usual}), columns)
            row = []
            for window in windows:
                current = Dataset.from_pandas(pd.DataFrame({"text": window}), columns)
                found = Report([DataDriftPreset()]).run(current, reference).dict()
                row.append(found["metrics"][0]["value"]["count"] > 0)
            told = {"stream": int(number), "drifted": row, "seconds": time.process_time() - begun}
            lines.write(json.dumps(told) + "\n")
            lines.flush()


if __name__ == "__main__":
    main()
