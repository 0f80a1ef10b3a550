"""Plain Flower: the same ModelManager called in a ClientApp, FedAvg, all in one environment and one process.

Run as `python plain_flower.py REPOSITORY LEARNERS ROUNDS`; prints one JSON list [loss, accuracy] for each round.
"""

import json
import os
import sys

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

# what Flower's own processes set before they run an app
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

repository, learners, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, repository)

from model_manager import ModelManager  # noqa: E402


def manager(number):
    os.environ["FLOPS_DATA_SHARD"] = f"{number}/{learners}"
    made = ModelManager()
    made.set_model_data()
    return made


managers = {number + 1: manager(number) for number in range(learners)}
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    model = managers[context.node_id]
    model.set_model_parameters(message.content["arrays"].to_numpy_ndarrays())
    metrics = MetricRecord({"num-examples": model.fit_model()})
    arrays = ArrayRecord(model.get_model_parameters())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model = managers[context.node_id]
    model.set_model_parameters(message.content["arrays"].to_numpy_ndarrays())
    loss, accuracy, examples = model.evaluate_model()
    metrics = MetricRecord({"loss": float(loss), "accuracy": float(accuracy), "num-examples": examples})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class LocalGrid(Grid):
    """Hands each message to the client app at once."""

    def get_node_ids(self):
        return list(managers)

    def send_and_receive(self, messages, *, timeout=None):
        return [app(message, self.context(message.metadata.dst_node_id)) for message in messages]

    def context(self, node):
        return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})

    def set_run(self, run):
        raise NotImplementedError

    run = None

    def create_message(self, *words, **named):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError


strategy = FedAvg(min_train_nodes=learners, min_evaluate_nodes=learners, min_available_nodes=learners)
result = strategy.start(
    grid=LocalGrid(),
    initial_arrays=ArrayRecord(ModelManager().get_model_parameters()),
    num_rounds=rounds,
    train_config=ConfigRecord(),
)
for metrics in result.evaluate_metrics_clientapp.values():
    sys.stdout.write(json.dumps([metrics["loss"], metrics["accuracy"]]) + "\n")
