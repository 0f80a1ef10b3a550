"""A learner as one would write it by hand: the ML repository's classes, called where Flower calls."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from model_manager import ModelManager

app = ClientApp()


def manager_for(message):
    manager = ModelManager()
    manager.set_model_data()
    manager.set_model_parameters(message.content["arrays"].to_numpy_ndarrays())
    return manager


@app.train()
def train(message: Message, context: Context) -> Message:
    manager = manager_for(message)
    examples = manager.fit_model()
    content = {
        "arrays": ArrayRecord(manager.get_model_parameters()),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(content=RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    loss, accuracy, examples = manager_for(message).evaluate_model()
    metrics = MetricRecord({"loss": float(loss), "accuracy": float(accuracy), "num-examples": examples})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
