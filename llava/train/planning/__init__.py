"""`llava plan`: what a training run will need, before anything is loaded.

    recipe -> shapes (meta model) -> lengths (samples, tokens) -> passes (one pass on tensors without values)
           -> memory, timing -> prediction -> proposals, when it does not fit

Nothing is trained and no weight is read: the model's config.json is enough, or its family's known shape.
"""
