"""Why a network is as large, as slow and as inaccurate as it is: its layers, one by one."""
