"""Images into what models take: opening, normalising, augmenting; the embedded data set."""
