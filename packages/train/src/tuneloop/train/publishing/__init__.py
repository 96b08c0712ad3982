"""From a trained model to what is registered: folder, card, lineage."""
