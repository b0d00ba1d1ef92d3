"""What every table between stages must look like (schemas, contracts) and the gate that checks it."""
