"""What tools/bench is made of: trees, systems, loads, measures, tables; imports nothing of rafsfs."""
