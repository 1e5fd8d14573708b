"""What a layer is, where it stands, its activations as tables of neurons, and which layers go together."""
