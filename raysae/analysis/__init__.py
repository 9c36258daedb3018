"""What the features of an atlas mean: phases of analysis, each a file in ``phases``.

``phase`` is the contract, ``subject`` what is analysed, ``engine`` runs phases on the pool of committed
work, ``results`` are the files that they leave.
"""
