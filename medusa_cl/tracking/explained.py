"""What is written into MLflow's descriptions, for people who open its pages without having read anything else."""

from __future__ import annotations

HEADING = "#### Result"
"""What the description of a run begins with, as long as nobody has written another one."""

EXPERIMENT_NOTE = """\
Each run learns a stream of dense tasks: first the base tasks together, then one new task after the other.

| metrics | what they say | step |
| --- | --- | --- |
| `final/*` | the result of the whole stream, one number each: compare runs by these | 0 |
| `final/forgetting_percent` | what earlier tasks lost since they were learnt, mean in %; lower is better | 0 |
| `final/forgetting_mean` | the same in the metrics' own units | 0 |
| `final/transfer_mean` | how much better the new tasks are than with plain heads on frozen plain features \
(or, without that reference, than single-task nets), mean in %; higher is better | 0 |
| `final/mtl_delta` | how much better all tasks are than single-task nets, mean in % (Delta MTL); higher is better | 0 |
| `final/<task>_<metric>` | the primary metric of a task on the test images, in its own unit | 0 |
| `test/<task>_<metric>` | the metrics of every task learnt so far, on the test images | tasks learnt |
| `forgetting/<task>` | loss since the task was learnt, in the metric's unit; positive = worse | tasks learnt |
| `transfer/<task>` | the gain of one new task in %, just after it was learnt | tasks learnt |
| `train/*` | losses and images per second while training | optimizer steps |

Which strategy? See the scatter of `final/forgetting_mean` (x) against `final/transfer_mean` (y): best is upper left.

What did later tasks do to the earlier ones? See `figures/forgetting_heatmap.png` of a run, or step through its pictures
`predictions/<task>`, of the same test images each time.
"""


def model_note(run_id: str) -> str:
    """Return how the model of a run is loaded."""
    return f"""\
#### The model

```python
import mlflow

model = mlflow.pyfunc.load_model("runs:/{run_id}/model")
outputs = model.predict(images)  # images: B H W 3 uint8 (np.ndarray) -> {{task: array}}
```

On the machine that has the run directory: `python -m medusa_cl.predict run={run_id} images=DIR out=DIR`
"""
