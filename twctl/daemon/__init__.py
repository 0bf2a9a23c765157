"""The daemon of `twctl run`: its boot order, its loop and tasks, the namespaces it works in, and its metrics."""
