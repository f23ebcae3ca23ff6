from editar.evaluation.pie_bench.run import PieBench
