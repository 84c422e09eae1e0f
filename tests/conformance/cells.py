CELLS = {}
