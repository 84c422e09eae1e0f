OWN = {}
