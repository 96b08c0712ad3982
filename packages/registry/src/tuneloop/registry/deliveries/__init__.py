"""Who is told of alert episodes: `receivers` says who, `outbox` what each is still to be told, `silences` what nobody
wants to hear of for a while.
"""
