-- The scan has started where something was put back: the entry that is appended now says where the next one starts. $1 lane.
DELETE FROM {relay}.put_back WHERE lane = $1
