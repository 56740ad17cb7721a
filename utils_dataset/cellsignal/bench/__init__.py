"""How fast this machine does the work, beside the methods of others and beside what the machine can do at all."""
