"""What a submitted job runs: `ray job submit --working-dir . -- python -m sweeps.run sweeps/quickstart.yaml`.

The same as `llmkt run`, with one difference: a job's working directory is thrown away after it, so a relative `storage`
is taken below `LLMKT_HOME` (a folder or URI; default: `llmkt` in the home directory of the machine that runs the job).
"""

import sys

from llmkt_ray.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run", "--as-job"]
    main()
