"""docs/performance.md from docs/performance.json.

python docs/make_performance.py

`python -m benchmarks` measures, writes the JSON, and makes the page itself.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import page  # noqa: E402

if __name__ == '__main__':
  print(page.write(HERE))
