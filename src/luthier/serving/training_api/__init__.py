"""The training API: clients that speak Tinker's protocol train adapters on the model that is served."""
