"""What a traced network is: how it is made, and what can be asked of it."""
