"""The rounds by Flower's own strategy; their metrics go to the file that PLAIN_RESULT names."""

import json
import os
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from model_manager import ModelManager

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    learners = int(os.environ["PLAIN_LEARNERS"])
    strategy = FedAvg(min_train_nodes=learners, min_evaluate_nodes=learners, min_available_nodes=learners)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(ModelManager().get_model_parameters()),
        num_rounds=int(os.environ["PLAIN_ROUNDS"]),
    )
    rounds = {number: dict(metrics) for number, metrics in result.evaluate_metrics_clientapp.items()}
    Path(os.environ["PLAIN_RESULT"]).write_text(json.dumps(rounds))
