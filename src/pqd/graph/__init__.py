"""What a traced network is: tracing, and questions about its graph."""
