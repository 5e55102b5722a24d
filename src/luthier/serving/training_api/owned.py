"""What belongs to a tenant: nobody is told of what is another's."""

from __future__ import annotations

from luthier.serving.http.refusal import Refusal
from luthier.serving.training_api.store import Row, Store
from luthier.serving.training_api.tenants import Tenant


class Owned:
    """The rows of a store by their tenant."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def session(self, tenant: Tenant, session: str) -> Row:
        """Returns a tenant's session; raises 404."""
        return self._own("sessions", "session", session, tenant)

    def model(self, tenant: Tenant, model: str) -> Row:
        """Returns a tenant's model; raises 404."""
        return self._own("models", "model", model, tenant)

    def sampler(self, tenant: Tenant, sampler: str) -> Row:
        """Returns a tenant's sampling session; raises 404."""
        return self._own("samplers", "sampling session", sampler, tenant)

    def checkpoint(self, tenant: Tenant, path: str) -> Row:
        """Returns a tenant's checkpoint; raises 404."""
        found = self.store.row("SELECT * FROM checkpoints WHERE path = ? AND tenant = ?", path, tenant.name)
        if found is None:
            raise Refusal(404, f"there is no checkpoint {path!r:.120}.", code="not_found")
        return found

    def future(self, tenant: Tenant, request_id: str) -> Row:
        """Returns a request of a tenant; raises 404."""
        return self._own("requests", "request", request_id, tenant)

    def _own(self, table: str, what: str, identity: str, tenant: Tenant) -> Row:
        found = self.store.row(f"SELECT * FROM {table} WHERE id = ? AND tenant = ?", identity, tenant.name)
        if found is None:
            raise Refusal(404, f"there is no {what} {identity!r:.120}.", code="not_found")
        return found
