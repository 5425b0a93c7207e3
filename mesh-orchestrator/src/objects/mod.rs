//! What the cluster knows: services, tasks and nodes, with their indexes. Imports only `spec`.
