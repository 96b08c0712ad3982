"""What a gateway costs: the engine it fronts, the systems compared, and the loads put on them."""
