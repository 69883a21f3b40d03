"""Training on one process or many, behind one small interface.

launch     which process of how many this is, and the process group
engine     the interface that the loop sees
single     one process; what the others build on
ddp        every rank holds everything
fsdp       parameters, gradients and optimizer state spread over the ranks (FSDP2)
deepspeed_engine   ZeRO stages 1 to 3, from the original's JSON files
watchdog   ends a process that waits for others forever
"""
