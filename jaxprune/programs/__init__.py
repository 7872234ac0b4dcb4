"""What is read off a jaxpr: FLOPs, zeros that stay zeros; and a primitive of ours."""
