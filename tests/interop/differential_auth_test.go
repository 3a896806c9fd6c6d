package interop

import (
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// The calls of the differential walk on users and roles, and on the store as a whole.

// === auth ===

func (w *walk) auths() {
	user, role := pick(w, "root", "ann", "bob", "nobody", ""), pick(w, "root", "r1", "r2", "none", "")
	switch w.rng.IntN(15) {
	case 0, 1:
		q := &pb.AuthUserAddRequest{Name: user, Password: "pw"}
		if w.chance(10) {
			q.Password, q.Options = "", &authpb.UserAddOptions{NoPassword: true}
		}
		simple(w, "user add", q, (*side).UserAdd)
	case 2:
		if w.chance(40) {
			simple(w, "user delete", &pb.AuthUserDeleteRequest{Name: user}, (*side).UserDelete)
		}
	case 3:
		simple(w, "change password", &pb.AuthUserChangePasswordRequest{Name: user, Password: "pw"}, (*side).UserChangePassword)
	case 4, 5:
		simple(w, "grant role", &pb.AuthUserGrantRoleRequest{User: user, Role: role}, (*side).UserGrantRole)
	case 6:
		simple(w, "revoke role", &pb.AuthUserRevokeRoleRequest{Name: user, Role: role}, (*side).UserRevokeRole)
	case 7:
		simple(w, "role add", &pb.AuthRoleAddRequest{Name: role}, (*side).RoleAdd)
	case 8:
		if w.chance(40) {
			simple(w, "role delete", &pb.AuthRoleDeleteRequest{Role: role}, (*side).RoleDelete)
		}
	case 9, 10:
		q := &pb.AuthRoleGrantPermissionRequest{Name: role}
		if w.chance(95) {
			q.Perm = &authpb.Permission{PermType: authpb.Permission_Type(w.rng.IntN(3)), Key: w.key(), RangeEnd: w.end()}
		}
		simple(w, "grant permission", q, (*side).RoleGrantPermission)
	case 11:
		q := &pb.AuthRoleRevokePermissionRequest{Role: role, Key: w.key(), RangeEnd: w.end()}
		simple(w, "revoke permission", q, (*side).RoleRevokePermission)
	case 12:
		both(w, "user get", &pb.AuthUserGetRequest{Name: user}, (*side).UserGet, func(r *pb.AuthUserGetResponse) string { return fmt.Sprint(head(r.Header), r.Roles) })
		both(w, "role get", &pb.AuthRoleGetRequest{Role: role}, (*side).RoleGet, func(r *pb.AuthRoleGetResponse) string { return fmt.Sprint(head(r.Header), r.Perm) })
	case 13:
		w.toggle()
	default:
		both(w, "user list", &pb.AuthUserListRequest{}, (*side).UserList, func(r *pb.AuthUserListResponse) string { return fmt.Sprint(head(r.Header), r.Users) })
		both(w, "role list", &pb.AuthRoleListRequest{}, (*side).RoleList, func(r *pb.AuthRoleListResponse) string { return fmt.Sprint(head(r.Header), r.Roles) })
	}
	if w.enabled && w.chance(70) {
		w.authenticate()
	}
}

// simple makes a call whose answer is only a header.
func simple[Q any, R interface{ GetHeader() *pb.ResponseHeader }](w *walk, name string, q Q, call method[Q, R]) {
	both(w, name, q, call, func(r R) string { return head(r.GetHeader()) })
}

// toggle enables or disables authentication.
func (w *walk) toggle() {
	if w.enabled {
		w.user = "root"
		if _, ok := both(w, "auth disable", &pb.AuthDisableRequest{}, (*side).AuthDisable, func(r *pb.AuthDisableResponse) string { return head(r.Header) }); ok {
			w.enabled = false
		}
		return
	}
	if w.chance(70) {
		simple(w, "user add", &pb.AuthUserAddRequest{Name: "root", Password: "pw"}, (*side).UserAdd)
		simple(w, "grant role", &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, (*side).UserGrantRole)
	}
	if _, ok := both(w, "auth enable", &pb.AuthEnableRequest{}, (*side).AuthEnable, func(r *pb.AuthEnableResponse) string { return head(r.Header) }); ok {
		w.enabled = true
		w.authenticate()
	}
}

// authenticate gets new tokens for all users.
func (w *walk) authenticate() {
	for _, user := range []string{"root", "ann", "bob"} {
		w.user = ""
		password := "pw"
		if w.chance(5) {
			password = "wrong"
		}
		r, ok := both(w, "authenticate", &pb.AuthenticateRequest{Name: user, Password: password}, (*side).Authenticate, func(r *pb.AuthenticateResponse) string { return fmt.Sprint(head(r.Header), r.Token != "") })
		if ok {
			for i, s := range w.sides {
				s.tokens[user] = r[i].Token
			}
		}
	}
}

// === the rest ===

func (w *walk) others() {
	switch w.rng.IntN(5) {
	case 0:
		q := &pb.AlarmRequest{Action: pb.AlarmRequest_AlarmAction(w.rng.IntN(3)), Alarm: pick(w, pb.AlarmType_NONE, pb.AlarmType_NOSPACE), MemberID: 7}
		both(w, "alarm", q, (*side).Alarm, func(r *pb.AlarmResponse) string { return fmt.Sprint(head(r.Header), r.Alarms) })
		if w.chance(60) {
			w.user = pick(w, "root")
			off := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 7}
			both(w, "disarm", off, (*side).Alarm, func(r *pb.AlarmResponse) string { return fmt.Sprint(head(r.Header), r.Alarms) })
		}
	case 1:
		both(w, "members", &pb.MemberListRequest{Linearizable: true}, (*side).MemberList, func(r *pb.MemberListResponse) string {
			m := r.Members[0]
			return fmt.Sprint(head(r.Header), len(r.Members), m.Name, len(m.PeerURLs), len(m.ClientURLs), m.IsLearner)
		})
	case 2:
		both(w, "status", &pb.StatusRequest{}, (*side).Status, func(r *pb.StatusResponse) string {
			version := r.Version + " " + r.StorageVersion
			if w.before37 {
				version = ""
			}
			// Go's protobuf prints blanks at random.
			alarms := strings.Fields(strings.Join(r.Errors, " "))
			return fmt.Sprint(head(r.Header), version, alarms, r.IsLearner, r.DbSizeQuota, r.Leader == r.Header.MemberId, r.DowngradeInfo)
		})
	case 3:
		at := pick(w, int64(0), w.revision, w.revision+1, w.compacted-1, w.revision-1)
		if at == w.compacted || at == 0 {
			at = w.revision
		}
		if w.hashed[at] {
			return
		}
		both(w, "hashkv", &pb.HashKVRequest{Revision: at}, (*side).HashKV, func(r *pb.HashKVResponse) string {
			return fmt.Sprint(head(r.Header), r.Hash, r.HashRevision, r.CompactRevision)
		})
	default:
		if w.enabled && w.before37 {
			return
		}
		both(w, "auth status", &pb.AuthStatusRequest{}, (*side).AuthStatus, func(r *pb.AuthStatusResponse) string { return fmt.Sprint(head(r.Header), r.Enabled, r.AuthRevision) })
	}
}
