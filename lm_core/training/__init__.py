"""One training loop: optimizers, schedules, checkpoints, exact resume.

pretrain  ->  loop  ->  optimizer, schedule, averages          what a step does
                   ->  checkpoint, journal, preemption         what survives it
                   ->  meter, forecast, throughput             what it takes
                   ->  distributed  <-  launch                 who shares it
"""
