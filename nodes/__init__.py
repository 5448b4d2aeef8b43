"""The graph's side: nodes that take inputs, call the engine and hand out models, files and reports."""
