"""Networks: from a tensor ``(B, 1, D, H, W)`` to logits ``(B, 6)``, and the files their weights are kept in."""
