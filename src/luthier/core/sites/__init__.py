"""Sites: the places of a model that an adapter can change, and the language that selects them."""
