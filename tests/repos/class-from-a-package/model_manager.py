from acme_models import FederatedModel as ModelManager
